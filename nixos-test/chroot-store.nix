# A store that is not where its paths say: `nix-store --store /srv/chroot`.
{
  name = "narwire-chroot-store";

  nodes.server = {
    imports = [ ./machine.nix ];
    services.narwire = {
      enable = true;
      openFirewall = true;
      # Its database and logs are looked for beside it.
      settings.real-store = "/srv/chroot/nix/store";
    };
    systemd.services.chroot-store = {
      requiredBy = [ "narwire.service" ];
      before = [ "narwire.service" ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      path = [ "/run/current-system/sw" ];
      script = "nix-store --store /srv/chroot --add /etc/machine-id >/srv/path";
    };
  };

  nodes.client = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("narwire.service")
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info | grep 'StoreDir: /nix/store'")
    path = server.succeed("cat /srv/path").strip()
    server.fail(f"nix-store --check-validity {path}")
    client.succeed(f"nix copy --no-check-sigs --from http://server:5000/ {path}")
    assert client.succeed(f"cat {path}") == server.succeed("cat /etc/machine-id")
  '';
}
