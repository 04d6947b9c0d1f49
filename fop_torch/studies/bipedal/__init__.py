"""Figure 4: PPO on the bipedal walker, on two terrains, with and without FOP.

`walker` is the environment, `ppo` the network and PPO's loop, `train` says what is run and runs it.
"""
