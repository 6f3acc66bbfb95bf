"""The DecentLaM study: what momentum does to the inconsistency bias of decentralized training."""
