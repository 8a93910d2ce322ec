"""The mathematics of one free energy: pure functions of tensors, torch only.

Notation, in every file of this room: x is a prompt and y a completion; G is the group size (completions of
one prompt), N the number of rows (completions of all prompts, group by group), T the number of tokens, Y the
number of completions of an enumerated world. pi is the policy and ref the frozen reference. Logarithms are
natural. Energy = -reward, so that everything here is minimised; beta is the temperature, in energy units per
nat.

    free_energy   F(pi) of an enumerated policy, term by term
    gibbs         where F is smallest, and how far away a policy is
    kl            estimators of KL(pi || ref) from samples: their values and their gradients
    advantages    the default estimator of the gradient of F, from groups of samples
    projections   the same target from the other side: weighted samples, soft targets, token factors
    gates         weights of a prompt as functions of what its rollouts achieved
    schedules     weights as functions of the step
    lambert       the Lambert W function in log space, which the demonstration optimum needs
"""
