"""Who may use the service: teams, their keys and limits, and the record of what was changed by whom."""
