"""Claims of attacks, adversarial objectives and aggregation of votes."""
