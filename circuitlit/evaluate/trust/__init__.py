"""The trust card: what is known of how sure a circuit is, one row a claim, without a grade and without a sum."""
