"""What runs when, where, and again: config, ledger, plan, pack, the Ray executor, verify, report and the command."""
