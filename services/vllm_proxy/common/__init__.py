"""What every service needs: settings, errors, gRPC, lifecycle, logging, metrics."""
