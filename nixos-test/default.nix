# Virtual machines with NixOS that run narwire, each test by its name: nix-build nixos-test -A acceptance, or all of them by
# `nix flake check`. They need a Linux with KVM to be quick.
{
  pkgs ? import <nixpkgs> { },
}:

builtins.mapAttrs (_: test: pkgs.testers.runNixOSTest test) {
  acceptance = ./acceptance.nix;
  chroot-store = ./chroot-store.nix;
  nginx = ./nginx.nix;
  nix-serve = ./nix-serve.nix;
  restart = ./restart.nix;
  upload = ./upload.nix;
}
