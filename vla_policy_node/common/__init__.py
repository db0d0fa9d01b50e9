"""What every folder may use: settings of the process, the machine, plain YAML."""
