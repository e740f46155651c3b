# In NixOS, the drivers of a virtual machine. What they need is none of narwire's.
{ }
