"""From user vectors to the best items: exact scores over a scan or an index."""
