collect_ignore = ["files"]  # recipes of other stacks: read, never imported
