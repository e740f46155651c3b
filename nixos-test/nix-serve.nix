# NixOS's own services.nix-serve, with narwire as its package and nothing else changed.
{
  name = "narwire-nix-serve";

  nodes.server =
    { config, ... }:
    {
      imports = [
        ./machine.nix
        ./secret.nix
      ];
      services.nix-serve = {
        enable = true;
        package = config.services.narwire.package;
        secretKeyFile = "/var/lib/secret/key";
        openFirewall = true;
      };
      # The module knows nothing of a NAR cache; $CACHE_DIRECTORY is enough.
      systemd.services.nix-serve.serviceConfig.CacheDirectory = "narwire";
    };

  nodes.client = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("nix-serve.service")
    server.wait_for_open_port(5000)
    client.wait_until_succeeds("curl --fail http://server:5000/nix-cache-info | grep 'Priority: 30'")

    path = server.succeed(
        "nix-build --no-out-link --expr 'derivation { name = \"greeting\"; system = builtins.currentSystem; "
        "builder = \"/bin/sh\"; args = [ \"-c\" \"echo hello > $out\" ]; }'"
    ).strip()
    realise = f"nix-store --option narinfo-cache-negative-ttl 0 --option substituters http://server:5000 --realise {path}"
    client.fail(realise)
    public = server.succeed("cat /var/lib/secret/public").strip()
    client.succeed(f"{realise} --option trusted-public-keys '{public}'")
    assert client.succeed(f"cat {path}") == "hello\n"
    assert "NAR cache: working" in client.succeed("curl --fail http://server:5000/health")

    server.succeed("systemctl stop nix-serve.service")
    server.succeed("systemctl show --property Result nix-serve.service | grep success")
  '';
}
