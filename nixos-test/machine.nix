# What the machines of all tests have: commands that are used in them, and nobody to ask for store paths but the machine under test.
{ lib, ... }:
{
  imports = [ ../nix/module.nix ];

  nix.settings = {
    experimental-features = [ "nix-command" ];
    substituters = lib.mkForce [ ];
  };
}
