"""How fast closed loop is: rollouts, pictures of the robot, policy servers."""
