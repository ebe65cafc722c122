"""What a finished run is shown as: history, plots, example pictures, report.html."""
