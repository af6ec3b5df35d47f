"""What Flambeau costs, measured beside the hand-written loop and its peers; see README.md here."""
