"""From a command to objects: entry, settings, processes, loggers, building and training from a configuration."""
