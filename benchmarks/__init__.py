"""What is measured: run by hand or by `make bench`, never as a timed test."""
