# As much of nixpkgs' `lib` as the project's own Nix code uses, for machines that have no nixpkgs: the module system with its types,
# merging, priorities and refusals, and a few functions. What a test shows with it holds with nixpkgs' own as well: name that one's
# `lib` folder in NARWIRE_TEST_NIXPKGS_LIB, and the same tests take it instead.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    fromJSON
    functionArgs
    genList
    hasAttr
    head
    intersectAttrs
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    match
    readFile
    replaceStrings
    split
    stringLength
    substring
    typeOf
    ;

  showOption = concatStringsSep ".";
  showValue =
    value:
    if isAttrs value || isList value || isFunction value then
      "a ${typeOf value}"
    else
      builtins.toJSON value;

  # -- Properties: what a definition may be wrapped in.

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  defaultPriority = 100;
  optionDefaultPriority = 1500;

  kind = value: if isAttrs value then value._type or "plain" else "plain";

  # The definitions in a value, each with its priority.
  discharge =
    definition:
    let
      inner = value: discharge (definition // { inherit value; });
      inherit (definition) value;
    in
    {
      "if" = if value.condition then inner value.content else [ ];
      merge = concatMap inner value.contents;
      override = map (found: found // { inherit (value) priority; }) (inner value.content);
      plain = [ ({ priority = defaultPriority; } // definition) ];
    }
    .${kind value};

  # The same for a tree of options: properties move down to the names beneath, so that what is defined is known before any condition is.
  push =
    value:
    let
      pushInto = wrap: map (mapAttrs (_: wrap)) (push value.content);
    in
    {
      "if" = pushInto (mkIf value.condition);
      merge = concatMap push value.contents;
      override = pushInto (mkOverride value.priority);
      plain =
        if isAttrs value then
          [ value ]
        else
          throw "${showValue value} is defined where there are options beneath";
    }
    .${kind value};

  # -- Options

  mkOption = fields: fields // { _type = "option"; };
  isOption = value: kind value == "option";

  # Merges what has the highest priority among the definitions of one place, or gives nothing if there is none.
  mergeDefinitions =
    location: type: definitions:
    let
      discharged = concatMap discharge definitions;
      highest = foldl' (
        priority: definition: if definition.priority < priority then definition.priority else priority
      ) 9999 discharged;
      chosen = filter (definition: definition.priority == highest) discharged;
      wrong = filter (definition: !type.check definition.value) chosen;
    in
    if chosen == [ ] then
      [ ]
    else if wrong != [ ] then
      throw "A definition for option `${showOption location}' is not of type `${type.name}': ${showValue (head wrong).value}"
    else
      [ (type.merge location chosen) ];

  evaluateOption =
    location: option: definitions:
    let
      default =
        if option ? default then
          [
            {
              value = option.default;
              priority = optionDefaultPriority;
            }
          ]
        else
          [ ];
      prioritised = concatMap discharge definitions ++ default;
      highest = foldl' (
        priority: definition: if definition.priority < priority then definition.priority else priority
      ) 9999 prioritised;
      chosen = filter (definition: definition.priority == highest) prioritised;
      merged = mergeDefinitions location option.type (
        map (definition: { inherit (definition) value; }) chosen
      );
    in
    if merged == [ ] then
      throw "The option `${showOption location}' is used but not defined"
    else
      (option.apply or (value: value)) (head merged);

  definitionsOf =
    name: pushed: concatMap (value: if hasAttr name value then [ value.${name} ] else [ ]) pushed;

  evaluateTree =
    location: declared: definitions:
    if isOption declared then
      evaluateOption location declared (map (value: { inherit value; }) definitions)
    else
      let
        pushed = concatMap push definitions;
      in
      mapAttrs (
        name: beneath: evaluateTree (location ++ [ name ]) beneath (definitionsOf name pushed)
      ) declared;

  # The places that are defined and not declared.
  unknown =
    location: declared: definitions:
    if isOption declared then
      [ ]
    else
      let
        pushed = concatMap push definitions;
      in
      concatMap (
        name:
        if hasAttr name declared then
          unknown (location ++ [ name ]) declared.${name} (definitionsOf name pushed)
        else
          [ (showOption (location ++ [ name ])) ]
      ) (attrNames (foldl' (all: value: all // value) { } pushed));

  declare =
    location: first: second:
    if isOption first || isOption second then
      throw "The option `${showOption location}' is declared twice"
    else
      first
      // mapAttrs (
        name: value:
        if hasAttr name first then declare (location ++ [ name ]) first.${name} value else value
      ) second;

  # -- Modules

  evaluate =
    location: modules: arguments:
    let
      load =
        module:
        let
          loaded = if isPath module || isString module then import module else module;
          called =
            if isFunction loaded then loaded (intersectAttrs (functionArgs loaded) allArguments) else loaded;
          sections = [
            "imports"
            "options"
            "config"
            "_file"
          ];
          hasSections = called ? options || called ? config;
          stray = filter (name: !elem name sections) (attrNames called);
        in
        if hasSections && stray != [ ] then
          throw "A module has `${head stray}' beside `options' and `config'"
        else
          concatMap load (called.imports or [ ])
          ++ [
            {
              options = called.options or { };
              config =
                if hasSections then
                  called.config or { }
                else
                  removeAttrs called [
                    "imports"
                    "_file"
                  ];
            }
          ];

      loaded = concatMap load modules;
      declared = foldl' (declare location) { } (map (module: module.options) loaded);
      definitions = map (module: module.config) loaded;
      config = evaluateTree location declared definitions;
      strangers = unknown location declared definitions;
      allArguments = arguments // {
        inherit lib config;
        options = declared;
      };
    in
    if strangers != [ ] then throw "The option `${head strangers}' does not exist" else config;

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    {
      config = evaluate [ ] modules specialArgs;
    };

  # -- Types

  mkOptionType =
    {
      name,
      check ? (_: true),
      merge ? mergeEqual,
    }:
    {
      _type = "option-type";
      inherit name check merge;
    };

  values = map (definition: definition.value);

  mergeEqual =
    location: definitions:
    let
      found = values definitions;
    in
    if all (value: value == head found) found then
      head found
    else
      throw "The option `${showOption location}' has conflicting definition values: ${concatStringsSep ", " (map showValue found)}";

  simple = name: check: mkOptionType { inherit name check; };
  joined =
    separator: name:
    mkOptionType {
      inherit name;
      check = isString;
      merge = _: definitions: concatStringsSep separator (values definitions);
    };
  ofElements = type: "${type.name}";
  isPackage = value: isAttrs value && value.type or "" == "derivation";

  types = rec {
    anything = simple "anything" (_: true);
    bool = simple "boolean" isBool;
    int = simple "signed integer" isInt;
    str = simple "string" isString;
    singleLineStr = strMatching "[^\n]*";
    lines = joined "\n" "strings concatenated with \"\\n\"";
    package = simple "package" (
      value: isPackage value || (isString value && lib.hasPrefix builtins.storeDir value)
    );
    path = simple "absolute path" (
      value: isPath value || isPackage value || (isString value && substring 0 1 value == "/")
    );
    ints = {
      unsigned = simple "unsigned integer" (value: isInt value && value >= 0);
      positive = simple "positive integer" (value: isInt value && value > 0);
    };
    port = simple "16 bit unsigned integer" (value: isInt value && value >= 0 && value <= 65535);
    strMatching =
      pattern:
      simple "string matching the pattern ${pattern}" (
        value: isString value && match pattern value != null
      );

    nullOr =
      type:
      mkOptionType {
        name = "null or ${ofElements type}";
        check = value: value == null || type.check value;
        merge =
          location: definitions:
          if any (value: value == null) (values definitions) then
            mergeEqual location definitions
          else
            type.merge location definitions;
      };

    either =
      first: second:
      mkOptionType {
        name = "${ofElements first} or ${ofElements second}";
        check = value: first.check value || second.check value;
        merge =
          location: definitions:
          if all first.check (values definitions) then
            first.merge location definitions
          else if all second.check (values definitions) then
            second.merge location definitions
          else
            mergeEqual location definitions;
      };

    listOf =
      type:
      mkOptionType {
        name = "list of ${ofElements type}";
        check = isList;
        merge =
          location: definitions:
          let
            elements = concatLists (values definitions);
            element =
              index:
              mergeDefinitions (location ++ [ "[definition ${toString (index + 1)}]" ]) type [
                { value = elemAt elements index; }
              ];
          in
          concatLists (genList element (length elements));
      };

    attrsOf =
      type:
      mkOptionType {
        name = "attribute set of ${ofElements type}";
        check = isAttrs;
        merge =
          location: definitions:
          let
            pushed = concatMap push (values definitions);
            merged = mapAttrs (
              name: _:
              mergeDefinitions (location ++ [ name ]) type (
                map (value: { inherit value; }) (definitionsOf name pushed)
              )
            ) (foldl' (all: value: all // value) { } pushed);
          in
          mapAttrs (_: head) (lib.filterAttrs (_: found: found != [ ]) merged);
      };

    submodule =
      module:
      mkOptionType {
        name = "submodule";
        check = value: isAttrs value || isFunction value;
        merge =
          location: definitions:
          evaluate location ((if isList module then module else [ module ]) ++ values definitions) {
            name = elemAt location (length location - 1);
          };
      };
  };

  # -- Everything else

  lib = {
    inherit
      evalModules
      mkIf
      mkMerge
      mkOption
      mkOptionType
      types
      ;
    inherit (builtins)
      all
      any
      attrNames
      concatLists
      elem
      filter
      isInt
      isList
      mapAttrs
      ;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkEnableOption =
      what:
      mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether to enable ${what}.";
      };
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    options.mergeEqualOption = mergeEqual;

    concatMapStrings = function: list: concatStringsSep "" (map function list);
    filterAttrs =
      keep: set:
      listToAttrs (
        concatMap (name: if keep name set.${name} then [ (lib.nameValuePair name set.${name}) ] else [ ]) (
          attrNames set
        )
      );
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    imap0 = function: list: genList (index: function index (elemAt list index)) (length list);
    importTOML = path: fromTOML (readFile path);
    last = list: elemAt list (length list - 1);
    mapAttrs' = function: set: listToAttrs (map (name: function name set.${name}) (attrNames set));
    nameValuePair = name: value: { inherit name value; };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    removePrefix =
      prefix: text:
      if lib.hasPrefix prefix text then
        substring (stringLength prefix) (stringLength text) text
      else
        text;
    splitString =
      separator: text: filter isString (split (replaceStrings [ "." ] [ "\\." ] separator) text);
    toInt = text: fromJSON text;
    unique = foldl' (found: value: if elem value found then found else found ++ [ value ]) [ ];
    getExe = package: "${package}/bin/${package.meta.mainProgram}";

    licenses = {
      mit.spdxId = "MIT";
      asl20.spdxId = "Apache-2.0";
    };
    # All of the folder: which of its files would be copied is not looked at here.
    fileset = {
      unions =
        paths:
        if all builtins.pathExists paths then paths else throw "fileset: not there: ${toString paths}";
      toSource = { root, fileset }: builtins.seq (length fileset) root;
    };
  };
in
lib
