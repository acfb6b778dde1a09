"""How good a two-view prior is: pairs, baselines, whole runs, and how they are shown."""
