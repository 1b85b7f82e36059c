"""The bench: workloads x reuse modes x tier sizes x chunk lengths, measured side by side."""
