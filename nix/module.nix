# services.narwire: a binary cache of this machine's store, of a directory, or of both.
#
# The service is the unit that the package brings (systemd/narwire.service), with what the options say in a drop-in: there is no second
# copy of the hardening that could fall behind.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.narwire;
  format = pkgs.formats.toml { };

  configurationFile = "narwire/narwire.toml";
  nginxSocket = "/run/narwire.sock";

  # What is wrong in the settings is said when the system is built. What else they ask for, the machine they are for may have.
  settingsFile =
    let
      unchecked = format.generate "narwire-unchecked.toml" cfg.settings;
    in
    pkgs.runCommandLocal "narwire.toml" { } ''
      ${lib.getExe cfg.package} check --settings-only --config ${unchecked}
      cp ${unchecked} $out
    '';

  # What a running server takes over from the file on SIGHUP, whatever it was before; all else waits for a restart. So do the names of
  # files (of keys and tokens), for a server can read only the folders that were named when it started.
  # Not drain-timeout, which changes TimeoutStopSec= as well.
  reloadable = [
    "access-log"
    "log-level"
    "priority"
    "private"
    "require-signature"
    "trusted-proxy"
  ];

  credentialName = index: "sign-key-${toString index}";

  # The unit's own directories belong to whoever the service runs as. Others need an owner that stays, and to be let through.
  cacheDirectory = "/var/cache/narwire";
  stateDirectory = "/var/lib/narwire";
  isBeneath = parent: path: path == parent || lib.hasPrefix "${parent}/" path;
  foreignDirectories =
    lib.filter (path: !isBeneath cacheDirectory path && !isBeneath stateDirectory path)
      (
        lib.optional (cfg.cacheDir != null) cfg.cacheDir
        ++ lib.optional cfg.upload.enable cfg.upload.directory
      );

  isUnixSocket = address: !lib.isInt address && lib.hasPrefix "unix:" address;
  isLoopback =
    address:
    !lib.isInt address
    && lib.any (prefix: lib.hasPrefix prefix address) [
      "127."
      "[::1]:"
    ];
  portOf =
    address: if lib.isInt address then address else lib.toInt (lib.last (lib.splitString ":" address));
  ports = map portOf (lib.filter (address: !isUnixSocket address) cfg.listen);
  reachablePorts = map portOf (
    lib.filter (address: !isUnixSocket address && !isLoopback address) cfg.listen
  );

  behindNginx = cfg.nginx.virtualHost != null;
in
{
  options.services.narwire = {
    enable = lib.mkEnableOption "narwire, a Nix binary cache";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The narwire to run. Its units and manual pages become part of the system.";
    };

    listen = mkOption {
      type = types.listOf (types.either types.port (types.strMatching "unix:/.+|[0-9.]+:[0-9]+|\\[[0-9a-fA-F:.]+]:[0-9]+"));
      default = lib.optional (!behindNginx) 5000;
      defaultText = lib.literalExpression "[ 5000 ], or nothing if nginx is in front";
      example = [
        "127.0.0.1:5000"
        "[::1]:5000"
        "unix:/run/narwire-local.sock"
      ];
      description = ''
        Where clients connect: ports on all addresses, `ADDRESS:PORT`, or `unix:PATH`. The sockets are made by `narwire.socket`, which
        NixOS leaves as it is when a system is switched; after a change, `systemctl restart narwire.socket narwire.service`.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the ports of {option}`services.narwire.listen` in the firewall. Those of nginx are its own.";
    };

    storeDir = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/nix/store";
      description = ''
        The store's directory as store paths name it, where that is not `/nix/store`. A store whose files are elsewhere than their names
        say (`nix --store /mnt`) is described by `real-store`, `db` and `log-dir` in {option}`services.narwire.settings`.
      '';
    };

    cacheDir = mkOption {
      type = types.nullOr types.path;
      default = cacheDirectory;
      description = ''
        Where NARs of the live store that are asked for again are kept encoded, or `null` for no such cache. A directory in another place
        is made, and owned by the user `narwire`.
      '';
    };

    signKeyPaths = mkOption {
      type = types.listOf types.path;
      default = [ ];
      example = [ "/var/lib/secrets/cache.key" ];
      description = ''
        Files of secret keys, made by `narwire key generate`, with which the live store's paths are signed. They are read by systemd and
        handed over as credentials, so root alone need be able to read them; a file that changes is read at the next restart.
      '';
    };

    priority = mkOption {
      type = types.nullOr types.ints.unsigned;
      default = null;
      example = 30;
      description = "What clients compare: they ask the cache with the lowest number first. `null` is narwire's default, 30.";
    };

    workers = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "How many network threads there are. `null` is one for each core.";
    };

    tokens = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/var/lib/narwire-tokens/tokens";
      description = ''
        The file of tokens, made by `narwire token create`, that uploads (and reading, with `private = true` in the settings) are allowed
        with. It has salted hashes only and must be readable by everybody. What changes in it is read by `systemctl reload narwire`. Keep
        it in a folder of its own, which the server can read.
      '';
    };

    upload = {
      enable = lib.mkEnableOption "uploads into a cache directory, which is then served behind the live store";

      directory = mkOption {
        type = types.path;
        default = stateDirectory;
        description = ''
          The cache directory that uploads go to. A directory in another place is made, and owned by the user `narwire`.
        '';
      };

      requireSignature = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
        description = "Public keys. If there are any, only paths that one of them has signed are taken.";
      };
    };

    nginx.virtualHost = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "cache.example.org";
      description = ''
        The name of an nginx virtual host that passes all requests but for `/metrics` to narwire, through a unix socket. Certificates and all else are said
        in {option}`services.nginx.virtualHosts` under the same name.
      '';
    };

    settings = mkOption {
      inherit (format) type;
      default = { };
      example = {
        cache-size = "50G";
        max-connections-per-address = 1000;
      };
      description = ''
        All settings, as in the configuration file: the names are those of the flags in `narwire --help`. The other options are put into
        it. A name that narwire does not know, or settings that contradict each other, fail the build of the system.
      '';
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = !(cfg.settings ? listen || cfg.settings ? port);
        message = ''
          services.narwire.settings.listen and .port have no effect, because the service gets its sockets from systemd.
          Set services.narwire.listen instead.
        '';
      }
      {
        assertion = cfg.listen != [ ] || behindNginx;
        message = ''
          services.narwire.listen is empty, so nobody could connect. Name a port in it, or set services.narwire.nginx.virtualHost.
        '';
      }
      {
        assertion = lib.all (
          path: !builtins.isPath path && !isBeneath builtins.storeDir path
        ) cfg.signKeyPaths;
        message = ''
          services.narwire.signKeyPaths names a file that is, or would be copied, in the Nix store, where everybody can read it.
          Keep the key elsewhere on the machine, and write its path in quotes.
        '';
      }
      {
        assertion = cfg.upload.enable -> cfg.tokens != null || cfg.settings.allow-anonymous-upload or false;
        message = ''
          services.narwire.upload is enabled, and nobody may upload. Set services.narwire.tokens to a file made by `narwire token create`
          (or, where everybody who can connect may upload, services.narwire.settings.allow-anonymous-upload = true).
        '';
      }
      {
        assertion = cfg.openFirewall -> reachablePorts != [ ];
        message = ''
          services.narwire.openFirewall has nothing to open, because services.narwire.listen has no port that another machine could reach.
          Remove it, or name a port. (nginx's own ports are opened in networking.firewall.allowedTCPPorts.)
        '';
      }
      {
        assertion = config.services.nix-serve.enable -> !lib.elem config.services.nix-serve.port ports;
        message = ''
          services.narwire and services.nix-serve both listen on port ${toString config.services.nix-serve.port}. Disable one of them, or
          give services.narwire.listen another port.
        '';
      }
    ];

    services.narwire.settings = lib.mkMerge [
      (mkIf (cfg.storeDir != null) { store-dir = cfg.storeDir; })
      (mkIf (cfg.cacheDir != null) { cache-dir = cfg.cacheDir; })
      (mkIf (cfg.priority != null) { inherit (cfg) priority; })
      (mkIf (cfg.workers != null) { inherit (cfg) workers; })
      (mkIf (cfg.tokens != null) { upload-token-file = cfg.tokens; })
      # A name without a slash is looked up among the credentials.
      (mkIf (cfg.signKeyPaths != [ ]) {
        secret-key-file = lib.imap0 (index: _: credentialName index) cfg.signKeyPaths;
      })
      (mkIf cfg.upload.enable {
        directories = [ cfg.upload.directory ];
        with-store = lib.mkDefault true;
      })
      (mkIf (cfg.upload.requireSignature != [ ]) { require-signature = cfg.upload.requireSignature; })
    ];

    # A file, not a link into the store: the running server may read this folder again, and need not be able to read the store.
    environment.etc.${configurationFile} = {
      source = settingsFile;
      mode = "0444";
    };
    environment.systemPackages = [ cfg.package ];

    systemd.packages = [ cfg.package ];

    systemd.sockets.narwire = {
      wantedBy = [ "sockets.target" ];
      # The first, empty one takes back the port of the unit itself.
      listenStreams = [
        ""
      ]
      ++ map (address: lib.removePrefix "unix:" (toString address)) cfg.listen
      ++ lib.optional behindNginx nginxSocket;
    };

    systemd.services.narwire = {
      wantedBy = [ "multi-user.target" ];

      # Switching to another system must not let go of the port. By default a service that has changed is stopped before, and its socket
      # with it, and both are started after (switch-to-configuration-ng, handle_modified_unit): clients are refused meanwhile. With this
      # it is one `systemctl restart`, during which narwire.socket holds the port and narwire drains. A changed socket unit is left
      # alone in either case: https://github.com/NixOS/nixpkgs/issues/74899
      stopIfChanged = false;

      # What only a restart applies is made to be one; anything else that changes in the file is a reload.
      restartTriggers = [ (builtins.toJSON (removeAttrs cfg.settings reloadable)) ];
      reloadTriggers = [ settingsFile ];

      serviceConfig = {
        LoadCredential = lib.imap0 (index: path: "${credentialName index}:${path}") cfg.signKeyPaths;
        ReadWritePaths = foreignDirectories;
        CacheDirectory = mkIf (cfg.cacheDir == null) "";
        # Longer than answers under way may take, as in the unit itself.
        TimeoutStopSec = mkIf (cfg.settings ? drain-timeout) (cfg.settings.drain-timeout + 15);
      };
    };

    # systemd takes a user of the service's name, if there is one, instead of making one up for each start.
    users = mkIf (foreignDirectories != [ ]) {
      users.narwire = {
        isSystemUser = true;
        group = "narwire";
        description = "Nix binary cache";
      };
      groups.narwire = { };
    };
    systemd.tmpfiles.rules = map (path: "d ${path} 0755 narwire narwire - -") foreignDirectories;

    networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall (lib.unique reachablePorts);

    services.nginx = mkIf behindNginx {
      enable = true;
      upstreams.narwire = {
        servers."unix:${nginxSocket}" = { };
        extraConfig = "keepalive 32;";
      };
      virtualHosts.${cfg.nginx.virtualHost}.locations = {
        # Figures are not for everybody: Prometheus asks narwire itself.
        "= /metrics".return = "404";
        "/" = {
          proxyPass = "http://narwire";
          # They would send some of the fields below a second time.
          recommendedProxySettings = false;
          extraConfig = ''
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            # With the port, for the URLs on the page. A client need not say it (HTTP/1.0, HTTP/3); then nothing is passed on.
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            # A NAR can be larger than the disk for temporary files, in both directions.
            proxy_buffering off;
            proxy_request_buffering off;
            client_max_body_size 0;
            proxy_read_timeout 10m;
            proxy_send_timeout 10m;
          '';
        };
      };
    };
  };
}
