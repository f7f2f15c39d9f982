"""What happens to one unit: media, ingest, faces, reenact, regions, quality. No Ray, no torch, no command line."""
