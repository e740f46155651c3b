# Takes the place of nixpkgs, so that Nix can evaluate the project's own flake without it:
#
#   nix flake check --no-build --override-input nixpkgs path:tests/it/nixos
{
  outputs =
    { self }:
    let
      lib = import ./lib.nix;
      pkgs = import ./pkgs.nix { inherit lib; };
    in
    {
      legacyPackages.x86_64-linux = pkgs;
      lib = lib // {
        nixosSystem =
          { system, modules }:
          let
            machine = import ./evaluate.nix { inherit lib pkgs; } modules;
          in
          {
            config.system.build.images.qemu = pkgs.runCommandLocal "image" { inherit system; } (
              builtins.toJSON machine
            );
          };
      };
    };
}
