"""What runs on the cluster: on the login node (agent) and on compute nodes (job wrapper, worker).

This folder is shipped to the cluster as source, under another package name, and runs there with
whatever Python is at hand. So here, and only here:

* standard library only, Python 3.8 and newer;
* relative imports only, and nothing from the packages above;
* imports are cheap: most of these modules load anew in every job. Those that do get along without
  ``typing``, whose import takes as long as the interpreter's own start.
"""
