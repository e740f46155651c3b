# As much of nixpkgs' package set as the project's own Nix code uses. A package is a derivation that Nix itself accepts, with what it was
# made of beside it to be looked at; none is ever built.
{
  lib ? import ./lib.nix,
}:
let
  derive =
    name: arguments:
    derivation {
      inherit name;
      system = "x86_64-linux";
      builder = "/bin/sh";
    }
    // {
      meta.mainProgram = name;
    }
    // arguments;
  packages =
    names:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = derive name { };
      }) names
    );

  pkgs =
    packages [
      "cargo"
      "clippy"
      "curl"
      "gitMinimal"
      "hello"
      "installShellFiles"
      "nix"
      "nixfmt"
      "nixfmt-tree"
      "rustfmt"
    ]
    // {
      inherit lib;
      glibc = derive "glibc" { static = derive "glibc-static" { }; };

      # An argument that is not among the packages here is an error, as it is there.
      callPackage =
        path: overrides:
        let
          function = import path;
          call =
            chosen:
            function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // chosen)
            // {
              override = more: call (chosen // more);
            };
        in
        call overrides;

      rustPlatform.buildRustPackage =
        arguments: derive "${arguments.pname}-${arguments.version}" (arguments // { inherit arguments; });
      mkShell = { inputsFrom, packages }: derive "shell" { inherit inputsFrom packages; };
      dockerTools.buildLayeredImage =
        {
          name,
          tag,
          config,
          extraCommands,
        }:
        derive name { inherit tag config extraCommands; };

      runCommandLocal =
        name: environment: text:
        derive name { inherit text; };

      # The contents of such a file are what was to be written, for the tests write it themselves.
      formats.toml = _: {
        type = (lib.types.attrsOf lib.types.anything) // {
          name = "TOML value";
        };
        generate = name: value: derive name { inherit value; };
      };

      # A test of virtual machines: each is evaluated as a system is.
      testers.runNixOSTest =
        module:
        let
          test = import module;
          evaluate = import ./evaluate.nix { inherit lib pkgs; };
        in
        derive "vm-test-run-${test.name}" {
          inherit (test) testScript;
          nodes = builtins.mapAttrs (_: machine: evaluate [ machine ]) test.nodes;
        };
    };
in
pkgs
