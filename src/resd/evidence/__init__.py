"""resd evidence: registered experiments, from a claim in a file to its verdict."""
