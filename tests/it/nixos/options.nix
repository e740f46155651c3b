# The options of NixOS that the project's modules and tests set, with the types that they have there, and none beside: what is set and
# not listed here is as much an error as in NixOS.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
    };
  free = option types.anything null;

  # A line of a unit file: lists are repeated lines and add up, all else has one value.
  line = lib.mkOptionType {
    name = "systemd option";
    merge =
      location: definitions:
      let
        values = map (definition: definition.value) definitions;
      in
      if lib.all lib.isList values then
        lib.concatLists values
      else
        lib.options.mergeEqualOption location definitions;
  };

  unitNames = option (types.listOf (
    types.strMatching "[a-zA-Z0-9@%:_.-]+[.](service|socket|target)"
  )) [ ];
  section = option (types.attrsOf line) { };
  unit = {
    description = option types.singleLineStr "";
    wantedBy = unitNames;
    requiredBy = unitNames;
    before = unitNames;
    after = unitNames;
    unitConfig = section;
    restartTriggers = option (types.listOf types.anything) [ ];
    reloadTriggers = option (types.listOf line) [ ];
  };
in
{
  options = {
    assertions = option (types.listOf (
      types.submodule {
        options.assertion = mkOption { type = types.bool; };
        options.message = mkOption { type = types.str; };
      }
    )) [ ];

    boot.loader.grub.enable = option types.bool true;
    boot.kernelParams = option (types.listOf types.str) [ ];

    environment.etc = option (types.attrsOf (
      types.submodule {
        options.source = mkOption { type = types.path; };
        options.mode = option types.str "symlink";
      }
    )) { };
    environment.systemPackages = option (types.listOf types.package) [ ];

    networking.hostName = option types.str "nixos";
    networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];

    nix.settings.experimental-features = option (types.listOf types.str) [ ];
    nix.settings.substituters = option (types.listOf types.str) [ ];

    services.nginx = {
      enable = option types.bool false;
      upstreams = option (types.attrsOf (
        types.submodule {
          options.servers = option (types.attrsOf (
            types.submodule { options.backup = option types.bool false; }
          )) { };
          options.extraConfig = option types.lines "";
        }
      )) { };
      virtualHosts = option (types.attrsOf (
        types.submodule {
          options.forceSSL = option types.bool false;
          options.enableACME = option types.bool false;
          options.locations = option (types.attrsOf (
            types.submodule {
              options.proxyPass = option (types.nullOr types.str) null;
              options.return = option (types.nullOr types.str) null;
              options.recommendedProxySettings = option types.bool true;
              options.extraConfig = option types.lines "";
            }
          )) { };
        }
      )) { };
    };

    services.nix-serve = {
      enable = option types.bool false;
      package = mkOption { type = types.package; };
      port = option types.port 5000;
      openFirewall = option types.bool false;
      secretKeyFile = option (types.nullOr types.str) null;
    };

    # Each is a whole configuration; what it says is evaluated by whoever asks.
    specialisation = option (types.attrsOf (types.submodule { options.configuration = free; })) { };

    system.extraDependencies = option (types.listOf types.package) [ ];
    system.stateVersion = option types.str "26.05";
    system.switch.enable = option types.bool false;

    systemd.packages = option (types.listOf types.package) [ ];
    systemd.tmpfiles.rules = option (types.listOf types.str) [ ];
    systemd.services = option (types.attrsOf (
      types.submodule {
        options = unit // {
          environment = option (types.attrsOf (types.nullOr types.str)) { };
          path = option (types.listOf (types.either types.package types.str)) [ ];
          script = option types.lines "";
          serviceConfig = section;
          stopIfChanged = option types.bool true;
        };
      }
    )) { };
    systemd.sockets = option (types.attrsOf (
      types.submodule {
        options = unit // {
          listenStreams = option (types.listOf types.str) [ ];
          socketConfig = section;
        };
      }
    )) { };

    users.users = option (types.attrsOf (
      types.submodule {
        options.isSystemUser = option types.bool false;
        options.group = option types.str "";
        options.description = option types.str "";
      }
    )) { };
    users.groups = option (types.attrsOf (
      types.submodule { options.gid = option (types.nullOr types.int) null; }
    )) { };
  };
}
