"""What a careful reader would say of a run's numbers and answers, by limits that are stated."""
