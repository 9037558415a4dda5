"""The command line: it parses, prints and sets exit statuses; it computes nothing."""
