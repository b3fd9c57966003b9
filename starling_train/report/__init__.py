"""Pages, plots and tables from the files of a run."""
