"""The words of the toy model's vocabulary, most useful first: chat, work history and judging people."""

from __future__ import annotations

_WORDS_TEXT = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out so up
said what its about than into them can only other time new some could these two may first then do any
like my now over such our man me even most made after also did many before must through back years where
much your way well down should because each just those people how too little state good very make world
still own see men work long get here between both life being under never day same another know while
last might us great old year off come since against go came right used take three states himself few
house use during without again place around however home small found thought went say part once high
general upon school every does got united left number course war until always away something fact water
though less public put think almost hand enough far took head yet government system set better told
nothing night end why called eyes find going look asked later knew point next program city business give
group toward young days let room word side given social present several order national second possible
rather per face among form important often things early case large big need four within felt along
children saw best church ever least power development light thing seemed family interest want members
mind country area others done turned although open service certain kind problem began different door
thus help sense means whole matter line question level results change together research value free
process community available policy able main study support quality project plan rate experience engineer
engineering software developer senior staff principal lead manager director president vice founder chief
officer company companies team teams role roles career job jobs position title candidate candidates
profile profiles resume skill skills education degree bachelor master science arts computer university
college institute technology graduate undergraduate field major minor studies academic strong weak yes
maybe recommendation recommend reasoning reason reasons analysis evaluation evaluate evaluated evidence
criteria criterion score scores rating rank ranking pedigree trajectory promotion promoted promotions
growth progress current currently previous former past history location remote full start date dates
month months week weeks industry product products platform platforms data database cloud infrastructure
backend frontend stack mobile web application applications services security network networks machine
learning deep model models language training statistics mathematics physics design architecture systems
distributed performance scale scaling reliability testing test tests code coding programming python java
javascript typescript rust kubernetes docker linux windows sql api apis tool tools framework library
source build building built write writing written read reading review reviews deliver delivered delivery
launch launched leading led manage managed managing management create created creating develop developed
developing improve improved improving improvement increase increased reduce reduced reducing migrate
migration designed implement implemented implementation maintain maintained supported drive drove driven
owned ownership mentor mentored collaborate collaborated cross functional customer customers client
clients user users market marketing sales finance financial bank consulting startup enterprise global
international local region regional office department organization organizations responsible
responsibility responsibilities require required requirements requirement qualification qualifications
achievement achievements impact result success successful successfully goal goals mission strategy
strategic technical knowledge understanding ability communication excellent solid relevant related
similar limited unclear unknown missing none null true false overall summary detail details detailed
example examples note notes information section list item items questions answer answers response
responses request requests message messages assistant prompt content text sentence paragraph words
numbers values key fields format object array string integer schema json return returns output input
name names type types description id please provide provided provides using based following include
includes including included consider considered considering compare compared comparison judge judged
decide decision decisions choose choice select selected explain explained explanation describe described
show shows shown clear clearly concise brief short simple complex difficult easy hard fast slow low
higher lower highest lowest fewer various multiple single total average approximately above below across
beyond near third fourth fifth final finally initial initially recent recently newer newest older oldest
latest soon top bottom middle center north south east west america american europe european asia india
china japan germany france london york san francisco seattle boston chicago texas california washington
street january february march april june july august september october november december monday friday
today tomorrow yesterday morning evening hour hours minute minutes times five six seven eight nine ten
hundred thousand million percent thinks believe feel feels seem seems appear appears become became
remain remains keep keeps kept hold holds held bring brings brought turn turns run runs running ran move
moves moved moving stop stops stopped starts started begin begins continue continues continued finish
finished complete completed join joined leave leaves spend spent pay paid buy bought sell sold cost
costs price prices money budget account contract offer offers offered accept accepted reject rejected
hire hired hiring interview interviews recruit recruiter recruiting talent employee employees employer
employment worker workers student students teacher professor doctor nurse lawyer artist author writer
editor journalist analyst scientist researcher architect consultant specialist coordinator administrator
associate intern internship fellow partner executive board member owner representative advisor expert
professional amazon google microsoft apple meta facebook netflix oracle intel nvidia adobe uber stripe
stanford berkeley harvard princeton cornell columbia carnegie mellon massachusetts oxford cambridge
worse worst bad nice fine outstanding exceptional impressive notable significant considerable moderate
poor acceptable sufficient insufficient appropriate suitable ideal perfect potential probable likely
unlikely uncertain sure specific particular common rare unique special usual typical standard normal
basic advanced modern traditional digital online human person individual society culture cultural health
medical care hospital energy environment environmental scientific natural physical economic political
legal law private nonprofit educational story stories book books paper papers article articles report
reports letter letters document documents page pages image images video audio music film game games food
air fire earth sun moon star sky sea river mountain forest tree animal dog cat bird fish horse car train
road bridge window wall floor kitchen garden table chair bed foot heart body eye voice hair red blue
green yellow black white brown color dark warm cold hot dry wet clean dirty empty heavy soft loud quiet
happy sad angry afraid calm brave wise honest love hate hope fear wish enjoy prefer remember forget
learn teach practice play sing dance draw paint cook eat drink sleep wake walk ride fly swim jump climb
fall rise grow live die am doing having shall ought sometimes usually rarely already either neither else
instead therefore moreover unless whereas whether despite throughout according concerning regarding
towards onto behind beside besides inside outside hello hi thanks thank welcome sorry okay ok helps
helped helpful lets gets gives gave takes makes finds looks looked tell tells ask asks call calls try
tries tried uses wants wanted works worked working
"""
WORDS: tuple[str, ...] = tuple(_WORDS_TEXT.split())

_PIECES_TEXT = """
s ed ing er ers est ly ness ment ments tion tions ation ations ity able ible ive al ally ous ful less
ist ism ize ized ise ent ant ence ance ic ical ish en es ies y re un in im dis pre pro con com de ex sub
inter trans over under out up non co bi tri multi micro macro auto self ian ia us um on an or ar el il
ol th ch sh st sp sc sk sl sm sn tr pr br cr dr fr gr pl bl cl fl gl qu wh ght ck nd nt ng rs ss ll ff
tt mm nn pp
"""
PIECES: tuple[str, ...] = tuple(_PIECES_TEXT.split())

PUNCTUATION: tuple[str, ...] = (
    *("\n\n", "\r\n", "  ", "    ", "\n  ", "\n    ", "\n- ", "\n* ", "```", "---", "...", "//", "://", "**"),
    *('": "', '":', '", "', '",', '":"', '","', '"}', '"]', "},", "],", "{\n", "}\n", "()", "'s", "n't"),
    *(" (", ") ", ", ", ". ", ": ", "; ", " - ", " / ", " & ", " = ", "->", "=>", "<=", ">=", "==", "!="),
)
"""Joined marks, for reading only: the toy writes single ones, whose odds are set one by one."""
