"""What measures a solve or an ODE layer and says what to do: `tune`, `check_gradient`, `diagnose`."""
