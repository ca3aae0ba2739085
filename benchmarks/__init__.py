"""Shell: the gateway measured against its peers, one run, ratios."""
