"""What lies on the disk: bases, adapter bundles and their cards, where they are found, installed and checked."""
