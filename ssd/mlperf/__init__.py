"""MLPerf's compliance logs and their checker."""
