"""Study byol-24576: BYOL from batch 4,096 to 24,576."""
