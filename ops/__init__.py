"""Pure numerics of dense visual SLAM: Sim(3), residuals, matching, solvers, fusion."""
