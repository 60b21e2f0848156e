"""Jobs: parse, make a frozen config, call, show."""
