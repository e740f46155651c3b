# nginx in front, by one option: narwire itself has no port.
{
  name = "narwire-nginx";

  nodes.server = {
    imports = [
      ./machine.nix
      ./secret.nix
    ];
    services.narwire = {
      enable = true;
      nginx.virtualHost = "server";
      tokens = "/var/lib/tokens/tokens";
      upload.enable = true;
    };
    networking.firewall.allowedTCPPorts = [ 80 ];
  };

  nodes.client = ./machine.nix;

  testScript = ''
    start_all()
    server.wait_for_unit("nginx.service")
    server.wait_for_unit("narwire.service")
    client.wait_until_succeeds("curl --fail http://server/nix-cache-info")
    server.fail("ss --listening --tcp --numeric | grep 5000")

    path = server.succeed("nix-store --add /etc/machine-id").strip()
    client.succeed(f"nix copy --no-check-sigs --from http://server/ {path}")

    # Larger than nginx keeps in memory, and than it takes by default.
    path = client.succeed("head --bytes=64M /dev/urandom >/tmp/noise && nix-store --add /tmp/noise").strip()
    token = server.succeed("cat /var/lib/secret/token").strip()
    client.succeed(f"echo machine server login ci password {token} >/etc/nix/netrc")
    client.succeed(f"nix copy --to http://server {path}")
    server.succeed(f"nix copy --no-check-sigs --from http://server/ --to /tmp/store {path}")
  '';
}
