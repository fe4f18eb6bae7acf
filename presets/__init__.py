"""The presets: a YAML file a row of the paper's tables, or of a size for a CPU; `ablations/` has the studies."""
