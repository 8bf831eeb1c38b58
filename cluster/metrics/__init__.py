"""What the service measures: one registry of metrics, and the way from the workers' own counts to Ray's exporter."""
