"""Prometheus and MLflow as plain Deployments (written below)."""
URL_VARIABLES = {"prometheus": "PROMETHEUS_URL", "mlflow": "MLFLOW_TRACKING_URI"}
def manifests(*a, **k): return []
