"""The loop that keeps policies right: drift, tuning, certificates, registry, ledger."""
