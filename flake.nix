{
  description = "A Nix binary cache that serves at the speed of the network card";

  # It has to have Rust 1.95 or later.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      # The only one that narwire runs on.
      system = "x86_64-linux";
      inherit (nixpkgs) lib;
      pkgs = nixpkgs.legacyPackages.${system};

      narwire = pkgs.callPackage ./nix/package.nix { };
      static = narwire.override { static = true; };
      tests = import ./nixos-test { inherit pkgs; };
      machine = lib.nixosSystem {
        inherit system;
        modules = [
          self.nixosModules.default
          ./nixos-test/image.nix
        ];
      };
    in
    {
      packages.${system} = {
        default = narwire;
        inherit narwire static;

        # `nix build .#container && docker load < result`. io_uring must be allowed where it runs: see deploy/oci.
        container = pkgs.dockerTools.buildLayeredImage {
          name = "narwire";
          tag = narwire.version;
          config = {
            Entrypoint = [ "${static}/bin/narwire" ];
            # As deploy/oci/build has it.
            User = "50000:50000";
            Env = [ "TMPDIR=/tmp" ];
            ExposedPorts."5000/tcp" = { };
            StopSignal = "SIGTERM";
          };
          extraCommands = "mkdir --mode=1777 tmp";
        };

        # A disk for qemu with NixOS and the service: `nix build .#image`.
        image = machine.config.system.build.images.qemu;
      };

      overlays.default = final: _: { narwire = final.callPackage ./nix/package.nix { }; };

      nixosModules.default = {
        imports = [ ./nix/module.nix ];
        # Built with the compiler of this flake: that of the machine's own nixpkgs may be too old.
        services.narwire.package = lib.mkDefault self.packages.${system}.narwire;
      };

      devShells.${system}.default = pkgs.mkShell {
        inputsFrom = [ narwire ];
        packages = [
          pkgs.cargo
          pkgs.clippy
          pkgs.rustfmt
          pkgs.curl
          pkgs.nix
        ];
      };

      formatter.${system} = pkgs.nixfmt-tree;

      checks.${system} = {
        package = narwire;
        format =
          pkgs.runCommandLocal "narwire-format"
            {
              nativeBuildInputs = [ pkgs.nixfmt ];
              files = [
                ./flake.nix
                ./nix
                ./nixos-test
                ./tests/it/nixos
              ];
            }
            ''
              find $files -name '*.nix' -exec nixfmt --check {} +
              touch $out
            '';
      }
      // lib.mapAttrs' (name: lib.nameValuePair "nixos-${name}") tests;
    };
}
