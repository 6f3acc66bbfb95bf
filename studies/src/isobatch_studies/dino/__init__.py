"""Study: DINO at another batch."""
