"""What the studies polyak, byol and dino share: arms, rows, claims on them, pages."""
