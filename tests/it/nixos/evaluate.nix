# The modules of a NixOS configuration, evaluated against the options that tests/it/nixos/options.nix lists: what the tests ask of it, as
# data.
{
  lib ? import ./lib.nix,
  pkgs ? import ./pkgs.nix { inherit lib; },
}:
modules:
let
  inherit
    (lib.evalModules {
      modules = [ ./options.nix ] ++ modules;
      specialArgs = {
        inherit pkgs;
        modulesPath = toString ./modules;
      };
    })
    config
    ;

  # Units as NixOS writes them: beside a unit that a package brings they become a drop-in.
  lines =
    section:
    lib.concatMapStrings (
      name:
      let
        value = section.${name};
        text =
          value:
          if value == true then
            "true"
          else if value == false then
            "false"
          else
            toString value;
      in
      lib.concatMapStrings (value: "${name}=${text value}\n") (
        if lib.isList value then value else [ value ]
      )
    ) (lib.attrNames section);
  service = unit: ''
    [Service]
    ${lib.optionalString (!unit.stopIfChanged) "X-StopIfChanged=false"}
    ${lines unit.serviceConfig}
  '';
  socket = unit: ''
    [Socket]
    ${lib.concatMapStrings (stream: "ListenStream=${stream}\n") unit.listenStreams}
    ${lines unit.socketConfig}
  '';
in
{
  failures = map (failed: failed.message) (
    lib.filter (asserted: !asserted.assertion) config.assertions
  );
  inherit (config.services.narwire) settings;
  etc = lib.mapAttrs (_: file: {
    inherit (file) mode;
    command = file.source.text;
  }) config.environment.etc;
  ports = config.networking.firewall.allowedTCPPorts;
  inherit (config.services.nginx) upstreams virtualHosts;
  tmpfiles = config.systemd.tmpfiles.rules;
  users = lib.attrNames config.users.users;
  unitPackages = map toString config.systemd.packages;
  services = lib.mapAttrs (_: service) config.systemd.services;
  sockets = lib.mapAttrs (_: socket) config.systemd.sockets;
  restartTriggers = map toString (config.systemd.services.narwire.restartTriggers or [ ]);
  specialisations = lib.mapAttrs (
    _: special:
    import ./evaluate.nix { inherit lib pkgs; } (
      modules
      ++ [
        special.configuration
        { specialisation = lib.mkForce { }; }
      ]
    )
  ) config.specialisation;
}
