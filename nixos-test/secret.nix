# Secrets of a test, made by the machine itself before narwire starts, for what is in the store is no secret: a signing key, and a file
# of tokens with the one that has been made first.
{ config, ... }:
{
  systemd.services.secret = {
    before = [
      "narwire.service"
      "nix-serve.service"
    ];
    requiredBy = [ "multi-user.target" ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
    };
    script = ''
      umask 077
      mkdir --parents /var/lib/secret
      ${config.services.narwire.package}/bin/narwire key generate test-1 --output /var/lib/secret/key >/var/lib/secret/public
      install --directory --mode=0755 /var/lib/tokens
      ${config.services.narwire.package}/bin/narwire token create --file /var/lib/tokens/tokens --name ci --scope read,write |
        tail -n 1 >/var/lib/secret/token
      chmod 0644 /var/lib/tokens/tokens
    '';
  };
}
