# Two machines: the server serves its store on port 5000, the client copies from it, without signatures and with them.
{
  name = "narwire-acceptance";

  nodes.server = {
    imports = [
      ./machine.nix
      ./secret.nix
    ];
    services.narwire = {
      enable = true;
      openFirewall = true;
      signKeyPaths = [ "/var/lib/secret/key" ];
    };
  };

  nodes.client = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("narwire.service")
    server.wait_for_open_port(5000)
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info | grep 'StoreDir: /nix/store'")

    # A path that the client cannot have.
    path = server.succeed("nix-store --add /etc/machine-id").strip()
    client.fail(f"nix-store --check-validity {path}")
    client.succeed(f"nix copy --no-check-sigs --from http://server:5000/ {path}")
    assert client.succeed(f"cat {path}") == server.succeed("cat /etc/machine-id")

    # One that is built, so that only a signature makes it trustworthy.
    path = server.succeed(
        "nix-build --no-out-link --expr 'derivation { name = \"greeting\"; system = builtins.currentSystem; "
        "builder = \"/bin/sh\"; args = [ \"-c\" \"echo hello > $out\" ]; }'"
    ).strip()
    realise = f"nix-store --option narinfo-cache-negative-ttl 0 --option substituters http://server:5000 --realise {path}"
    client.fail(realise)
    public = server.succeed("cat /var/lib/secret/public").strip()
    client.succeed(f"{realise} --option trusted-public-keys '{public}'")
    assert client.succeed(f"cat {path}") == "hello\n"
    assert "test-1:" in client.succeed(f"nix path-info --sigs {path}")

    # What is asked for again is kept, in a directory that Nix itself can read.
    health = client.succeed("curl --fail http://server:5000/health")
    assert "NAR cache: working" in health, health
    hash = path.removeprefix("/nix/store/")[:32]
    for _ in range(2):
        client.succeed(f"curl --fail --output /dev/null http://server:5000/nar/{hash}.nar")
    server.wait_until_succeeds(f"ls /var/cache/narwire/{hash}.narinfo")
    server.succeed(f"nix path-info --store file:///var/cache/narwire {path}")

    # The promise of the unit, by systemd's own measure: 2.0 of 10.
    server.succeed("systemd-analyze security --threshold=20 narwire.service")

    server.succeed("systemctl stop narwire.socket narwire.service")
    server.succeed("systemctl show --property Result narwire.service | grep success")
  '';
}
