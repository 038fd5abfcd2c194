"""The report of an incident, made from its record alone: `facts` derives it, `deviations` judges it, `render` writes it."""
