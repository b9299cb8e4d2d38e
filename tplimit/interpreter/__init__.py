"""The loop over the equations of a program, the table of rules, what a rule may use."""
